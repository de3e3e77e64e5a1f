"""The appliance itself: `openclaw run` and all that speaks to it while it runs.

    build       pure: which queues share memory, which worker runs them, who gets which rule
    cpus        pure choice of a core for each worker
    engine      the order of life, and the rules of the running appliance
    statistics  the figures, as the contract names them; accounts proves that they add up
    control     the socket; client is its other end
    metrics     the Prometheus endpoint

Nothing here touches a packet: that is the compiled worker's, without the GIL.
"""
