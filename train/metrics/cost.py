"""What a run costs: the cost/* of a row of metrics."""


def cost_row(gpu_hour_usd: float | None, n_gpus: int, seconds: float) -> dict[str, float]:
    """cost/usd of `n_gpus` GPUs over the `seconds` since the attempt's start, whatever they did in them; empty without
    a price, and without GPUs."""
    if gpu_hour_usd is None or n_gpus == 0:
        return {}
    return {"cost/usd": gpu_hour_usd * n_gpus * seconds / 3600}
