"""data=text: files of text, tokenised once into a folder of the cache, and from then on read as tokens."""

from train.data.cache_folder import cache_folder
from train.data.config import DataConfig, MixturePart
from train.data.source import Corpus
from train.data.text_plan import plan_text
from train.data.token_folder import TOKENS_FILE, TokenFolder
from train.data.tokenise import tokenise
from train.data.tokenise_progress import TokeniseProgress
from train.data.tokens import folder_corpus


def open_text(source: DataConfig | MixturePart, data: DataConfig, seed: int) -> Corpus:
    """The text at `source.path`: training windows shuffled by `seed`, held-out ones in order.

    The folder in data.cache_dir follows from the files (paths, sizes, times of change), the tokenizer and the settings:
    a change makes another one. Of several processes of a machine that open the same text, one tokenises and shows how
    far it is, and the others wait. Call it before there is a process group, whose collectives would time out.

    Raises:
        DataError: for text or a tokenizer that cannot be read or does not serve; naming data.cache_dir if nothing can
            be written there.
    """
    plan = plan_text(source, data, seed)
    folder = cache_folder(data, f"text-{plan.key}")
    if (folder / TOKENS_FILE).is_file():
        tokens = TokenFolder.open(folder)
    else:
        tokens = tokenise(folder, plan, TokeniseProgress(), f"data.cache_dir={data.cache_dir}")
    return folder_corpus(tokens, f"data.path={source.path}", data, seed)
