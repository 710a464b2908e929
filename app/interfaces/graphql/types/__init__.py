"""The types of the graph, one file a noun; they name each other by lazy types."""
