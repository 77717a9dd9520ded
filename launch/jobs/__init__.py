"""What commands share that start several jobs: points, a torchrun each, and a folder of their own."""
