"""How good generated and reconstructed images are: FID and its relatives, PSNR, SSIM, and how codes are used."""
