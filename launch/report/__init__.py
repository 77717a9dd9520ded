"""`switchyard report`: runs beside each other, on one page that opens from disk."""
