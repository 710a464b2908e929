// One tab for each step of a first hour with the API. tests/contract/test_examples.py validates them against the schema.
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
  {
    query: `# The team: its workflows, its agents, its latest tasks.
query Team {
  team {
    id
    workflows { nodes { id slug name version { number } } }
    agents { nodes { name state labels busySlots slots } }
    tasks(first: 10) { nodes { id state createdAt workflow { slug } } }
  }
}
`,
  },
  {
    query: `# Run a workflow. Follow the task in the next tab.
mutation Submit($input: SubmitTaskInput!) {
  submitTask(input: $input) {
    ... on SubmitTaskSuccess { task { id state } }
    ... on Refusal { code message path }
  }
}
`,
    variables: JSON.stringify({ input: { workflow: "render-fractal", parameters: {} } }, null, 2),
  },
  {
    query: `# What happens to a task, live. Put the id that submitTask gave into the variables.
subscription Follow($taskId: ID!) {
  taskEvents(taskId: $taskId) {
    cursor
    events {
      seq
      ... on TaskStatusChanged { state reason }
      ... on TaskLogged { stream lines }
      ... on TaskOutputAdded { name size }
    }
    progress { fraction step total message }
    preview { url }
    snapshot { task { state } }
  }
}
`,
    variables: JSON.stringify({ taskId: "task_..." }, null, 2),
  },
  {
    query: `# What a task produced. The links are fresh and short-lived.
query Outputs($taskId: ID!) {
  node(id: $taskId) {
    ... on Task {
      state
      outputs { nodes { name mediaType size sha256 url thumbnailUrl } }
      error { code message lastLogLines }
    }
  }
}
`,
    variables: JSON.stringify({ taskId: "task_..." }, null, 2),
  },
  {
    query: `# Which tasks of the team change, live: what a list page follows.
subscription TasksChanged {
  tasksChanged { resync tasks { taskId state } }
}
`,
  },
];
