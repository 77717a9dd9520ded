"""The network, written for one device. It knows nothing of ranks, meshes or clocks."""
