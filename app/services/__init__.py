"""Use cases: one public method is one verb of the product and one transaction."""
