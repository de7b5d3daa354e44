"""Shows and exports a denoising: states become frames, and frames a live terminal, a page or a picture."""
