"""BAND: behaviour-aligned neural dynamics. LFADS whose factors must also explain behaviour.

Beyond the original: behaviour is standardised on train data, so a weight means the same in any unit; missing samples
(NaN) are left out one by one; groups of channels have weights of their own; `config/README.md` explains each setting.

References
----------
Kudryashova, Hurwitz, Perich & Hennig (2025), "BAND: Behavior-Aligned Neural Dynamics is all you need to capture motor
corrections", bioRxiv.
"""

from collections.abc import Mapping
from typing import ClassVar

from torch import Tensor

from ctdb.datasets import MultiSession, SpikeDataset
from ctdb.errors import DatasetError
from ctdb.models import MODELS
from ctdb.models.augmentations import is_off
from ctdb.models.base import Sizes
from ctdb.models.lfads import LFADS, LFADSSettings
from ctdb.recurrent import Noise
from ctdb.settings import NonNegative


class BANDSettings(LFADSSettings):
    """Settings of BAND: those of LFADS and the weight of behaviour."""

    behavior_weight: NonNegative = 0.1


@MODELS.register("band")
class BAND(LFADS):
    r"""LFADS with :math:`L_{BAND} = L + w \sum_g w_g \, MSE_g`.

    :math:`MSE_g` is the mean squared error of behaviour group g in standard deviations, decoded from the factors by a
    decoder that is trained with the model. With `behavior_weight` 0, BAND is LFADS bit for bit: its decoder is then
    fitted afterwards, as LFADS's is.
    """

    Settings = BANDSettings
    may_differ: ClassVar[frozenset[str]] = LFADS.may_differ | {"behavior_weight"}
    may_differ_above_zero: ClassVar[frozenset[str]] = frozenset({"behavior_weight"})
    settings: BANDSettings

    def __init__(self, settings: BANDSettings, sizes: Sizes):
        super().__init__(settings, sizes)
        if self.behavior is None:
            raise DatasetError(
                "model `band` aligns factors with behaviour, but the dataset has no `behavior`; "
                "give it one, or fit `lfads`"
            )

    def _add_behavior(
        self,
        loss: Tensor,
        terms: dict[str, Tensor],
        batch: Mapping[str, Tensor],
        factors: Tensor,
        noise: Noise | None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss with the decoder's error, in training and where epochs are selected."""
        if is_off(self.settings.behavior_weight) or "behavior" not in batch:
            return loss, terms
        in_trial = batch.get("in_trial", batch["weight"])
        error = self.behavior.loss(factors, batch["behavior"], in_trial, noise)
        return loss + self.settings.behavior_weight * error, terms | {"behavior": error}

    def finish(self, dataset: SpikeDataset | MultiSession) -> None:
        """Nothing: the decoder is trained with the model, unless behaviour had no weight."""
        if self.settings.behavior_weight == 0:
            super().finish(dataset)
