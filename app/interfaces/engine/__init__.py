"""What both schemas need: protocol, framing, negotiation, limits."""
