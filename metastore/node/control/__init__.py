"""The node's dealings with the control plane: what its records say, what is changed in them, and who does that."""
