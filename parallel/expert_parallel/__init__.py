"""Expert parallelism: who moves rows between the ranks of tokens and those of experts."""
