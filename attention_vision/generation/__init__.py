"""Image generation: SAGAN and Attention U-Net, data and scores."""
