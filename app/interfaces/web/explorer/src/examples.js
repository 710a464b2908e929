// One tab for each step of a first hour with the API.
export const examples = [
  {
    query: `# Who am I, and which teams do I see?
query Viewer {
  viewer {
    user { name email }
    teams { id slug name role }
  }
}
`,
  },
];
