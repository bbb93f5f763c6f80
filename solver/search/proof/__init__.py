"""The proof over batch and frequency: bounds of boxes of candidates, and the branch and bound that asks for them."""
