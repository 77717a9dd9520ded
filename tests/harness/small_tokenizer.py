"""A tokenizer.json that is trained on the spot: byte-level BPE, as GPT-2's, of a thousand tokens."""

import sysconfig
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

END = "<|endoftext|>"


def write_tokenizer(path: Path, special: tuple[str, ...] = ("<pad>", END)) -> Path:
    """Train on a module of the standard library, with the tokens `special` first, and save to `path`."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=1000, special_tokens=list(special), initial_alphabet=alphabet, show_progress=False
    )
    text = (Path(sysconfig.get_path("stdlib")) / "argparse.py").read_text()
    tokenizer.train_from_iterator([text], trainer)
    tokenizer.save(str(path))
    return path
