"""data=hf: a Hugging Face dataset, trained on while it is still being read."""

from hashlib import sha256
from json import dumps

from train.data.cache_folder import cache_folder
from train.data.config import DataConfig, MixturePart
from train.data.source import Corpus, DataError
from train.data.spool import Spool, SpoolStream
from train.data.spool_writer import AHEAD, SpoolWriter
from train.data.text_plan import plan_text
from train.data.token_writer import HELDOUT, TRAIN


def open_hf(source: DataConfig | MixturePart, data: DataConfig, seed: int) -> Corpus:
    """The dataset `source.name`, in its own order, or shuffled through a buffer by `seed`.

    One process of a machine tokenises into a folder of data.cache_dir, a little ahead of what is read, and all read
    from there; a later run goes on with the folder. Sample i is the same for all of them. Returns when each split's
    first sample is there. The fingerprint is that of the settings and of the dataset's revision or files, as its text
    is not known.

    Raises:
        DataError: if there is no such dataset, subset, split or field, or no way to it; naming data.cache_dir if
            nothing can be written there. Later, what ends the stream early is raised by the sample that needs it.
    """
    plan = plan_text(source, data, seed)
    folder = cache_folder(data, f"hf-{plan.key}")
    try:
        writer = SpoolWriter(folder, plan)
        writer.start()
    except OSError as error:
        raise DataError(
            f"data.cache_dir={data.cache_dir}: {folder} cannot be written to ({error.strerror}): name another folder"
        ) from error
    spool = Spool(folder, f"data.name={source.name}", plan.tokenizer.vocab_size, writer.start)
    train = SpoolStream(spool, TRAIN, data.sequence_length, margin=AHEAD // 4)
    heldout = SpoolStream(spool, HELDOUT, data.sequence_length, margin=0)
    for stream in (train, heldout):
        stream[0]  # what is wrong with the dataset, or with its split, is said before a process group exists
    fingerprint = sha256(dumps(plan.settings, sort_keys=True).encode()).hexdigest()
    return Corpus(train, heldout, fingerprint, plan.tokenizer.separator, plan.tokenizer.identity)
