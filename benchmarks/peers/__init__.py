"""Other federated-learning simulators and hand-written loops on the same four workloads."""
