"""The bus: Redis pub/sub behind one shared connection."""
