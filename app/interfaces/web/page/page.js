// The page's one script: it reads a one-time link from the fragment (which never reaches a server's log), signs in, and
// shows where to go. The session lives in a cookie that scripts cannot read; nothing is stored here.

const LINKS = { "sign-in": "redeem", "first-run": "first-run", reset: "reset", invitation: "invitation" };
const REFUSED = "... on Refusal { code message path }";

const byId = (id) => document.getElementById(id);

class Refused extends Error {}

async function ask(query, variables = {}) {
  const answer = await fetch("/graphql", {
    method: "POST",
    headers: { "Content-Type": "application/json", Accept: "application/graphql-response+json", "X-Runyard-Client": "page" },
    credentials: "same-origin",
    body: JSON.stringify({ query, variables }),
  });
  const { data, errors } = await answer.json();
  if (errors) throw new Refused(errors[0].message);
  return data;
}

async function change(name, input) {
  const type = name[0].toUpperCase() + name.slice(1);
  const data = await ask(`mutation ($input: ${type}Input!) { result: ${name}(input: $input) { __typename ${REFUSED} } }`, {
    input,
  });
  if (data.result.code) throw new Refused(data.result.message);
}

function show(id) {
  for (const part of document.querySelectorAll("form, section")) part.hidden = part.id !== id;
  byId("status").hidden = true;
  byId(id).querySelector("input")?.focus();
}

function refuse(message) {
  byId("refusal").textContent = message;
  byId("refusal").hidden = !message;
}

async function showViewer() {
  const { viewer } = await ask("{ viewer { user { name email } teams { id slug name role } } }");
  byId("who").textContent = `${viewer.user.name} <${viewer.user.email}>`;
  byId("teams").replaceChildren(
    ...viewer.teams.map((team) => {
      const line = document.createElement("li");
      line.textContent = `${team.name} (${team.slug}): ${team.role.toLowerCase()}`;
      return line;
    }),
  );
  show("signed-in");
}

function link() {
  const [kind, token] = location.hash.slice(1).split("=", 2);
  return token && LINKS[kind] ? { form: LINKS[kind], token } : null;
}

function forget() {
  history.replaceState(null, "", location.pathname); // a one-time token has no business in the history
}

function onSubmit(id, act) {
  byId(id).addEventListener("submit", async (event) => {
    event.preventDefault();
    const form = event.currentTarget;
    const fields = Object.fromEntries([...new FormData(form)].filter(([, value]) => value !== ""));
    const button = form.querySelector("button");
    button.disabled = true;
    refuse("");
    try {
      await act(fields);
      forget();
      form.reset();
      await showViewer();
    } catch (error) {
      refuse(error instanceof Refused ? error.message : "The server does not answer; try again.");
    } finally {
      button.disabled = false;
    }
  });
}

onSubmit("sign-in", (fields) => change("signIn", fields));
onSubmit("first-run", (fields) => change("redeemLink", { ...fields, token: link()?.token ?? "" }));
onSubmit("reset", (fields) => change("redeemLink", { ...fields, token: link()?.token ?? "" }));
onSubmit("invitation", (fields) => change("acceptInvitation", { ...fields, token: link()?.token ?? "" }));

byId("sign-out").addEventListener("click", async () => {
  await change("signOut", {});
  show("sign-in");
});

async function begin() {
  const found = link();
  try {
    if (found?.form === "redeem") {
      await change("redeemLink", { token: found.token });
      forget();
    } else if (found) {
      return show(found.form);
    }
  } catch (error) {
    forget();
    refuse(error instanceof Refused ? error.message : "The server does not answer; try again.");
  }
  await showViewer().catch(() => show("sign-in"));
}

addEventListener("hashchange", begin);
begin();
