"""`switchyard verify`: a layout proven equal to one process, on this machine, before a cluster is rented."""
