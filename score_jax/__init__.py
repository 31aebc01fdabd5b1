"""Score-based generative models in JAX: train, sample, and compute bits per dimension."""
