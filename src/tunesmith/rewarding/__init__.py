"""What a reward is used for: scores of answers, the best of n, and training rows made of the best."""
