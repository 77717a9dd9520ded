"""How the network is laid over ranks, and how its communication is hidden."""
