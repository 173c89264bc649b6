"""Scores of images: feature networks, Fréchet distance, class accuracy, PSNR and SSIM."""

METRICS = ("fid", "kid", "prdc")
