// GraphiQL over our own endpoint: queries by HTTP, subscriptions by WebSocket, both with the session's cookie.
import "graphiql/setup-workers/vite";
import "graphiql/style.css";
import "./explorer.css";

import { createGraphiQLFetcher } from "@graphiql/toolkit";
import { GraphiQL } from "graphiql";
import { createClient } from "graphql-ws";
import { createRoot } from "react-dom/client";

import { examples } from "./examples.js";

const socket = createClient({
  url: `${location.protocol === "https:" ? "wss" : "ws"}://${location.host}/graphql`,
  lazy: true,
  retryAttempts: 5,
});

const fetcher = createGraphiQLFetcher({
  url: "/graphql",
  headers: { "X-Runyard-Client": "explorer" }, // a request that counts on a cookie needs a header of its own
  wsClient: socket,
});

// Headers are neither shown nor kept: a token typed there would be stored by the browser.
createRoot(document.getElementById("explorer")).render(
  <GraphiQL
    fetcher={fetcher}
    defaultTabs={examples}
    isHeadersEditorEnabled={false}
    shouldPersistHeaders={false}
    defaultEditorToolsVisibility="variables"
  >
    <GraphiQL.Logo>
      <a href="/" className="runyard-home">
        Runyard
      </a>
    </GraphiQL.Logo>
  </GraphiQL>,
);
