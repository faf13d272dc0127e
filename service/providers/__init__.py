"""The providers: the only room that imports a vendor's SDK."""
