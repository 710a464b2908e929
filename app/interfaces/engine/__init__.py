"""What both schemas need: negotiation, the WebSocket protocol, limits, execution. It knows no noun of the product.

bytes -> http.py -----> engine.py -> documents.py (text -> parsed, validated, measured; one bounded LRU)
         socket.py --/      |
           protocol.py      +-> graphql-core: execution, one fresh context for each operation and each event
           outbox.py
"""
