"""How long a rank may be in a phase."""

from dataclasses import dataclass
from typing import Self

from train.faults.beat import LastBeat


@dataclass(frozen=True)
class Limits:
    """Seconds; 0 is no limit. Fields of RecoveryConfig without their ending, and the phases that each is for."""

    start: float = 0.0
    load: float = 0.0
    first_step: float = 0.0
    step: float = 0.0
    eval: float = 0.0
    save: float = 0.0

    @classmethod
    def parse(cls, word: str) -> Self:
        """What `word` wrote."""
        return cls(*map(float, word.split(",")))

    def word(self) -> str:
        """For a command line."""
        return ",".join(map(str, (self.start, self.load, self.first_step, self.step, self.eval, self.save)))

    def of(self, beat: LastBeat) -> float:
        """The limit of the phase that `beat` is in."""
        beside = {
            "init_model": self.start,
            "ckpt_load": self.load,
            "eval": self.eval,
            "ckpt_save": self.save,
            "profile": self.save,
            "shutdown": self.save,
        }
        return beside.get(beat.phase, self.step if beat.steps_begun > 1 else self.first_step)
