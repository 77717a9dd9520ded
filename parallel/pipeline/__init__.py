"""Pipeline parallelism: schedules as data, and the one executor that walks them."""
