"""Training: one loop that knows no algorithm, model or reward."""
