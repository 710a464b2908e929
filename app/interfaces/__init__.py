"""Entry points driven by a request: parse, call one service, render."""
