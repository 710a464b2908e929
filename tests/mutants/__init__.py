"""Mutants: patches that break the product on purpose, to show that the proofs notice.

`make mutants` applies each to a copy of the tree and runs the layer of proofs that has to catch it. A patch begins with
a sentence that says what it breaks, and with two lines, `Layer:` and `Proof:`, that name who catches it.
"""
