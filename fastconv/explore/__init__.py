"""What a network sees and has learnt: pure functions from a network and arrays to arrays."""
