"""Tables and the only queries on them. Nothing above this package knows Tortoise or SQL."""
