"""The published tables and the evidence behind them."""
