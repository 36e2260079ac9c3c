"""Watch the density that a self-supervised encoder learns while it trains."""
