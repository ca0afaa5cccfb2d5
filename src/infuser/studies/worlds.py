"""What the detection benchmark is run on: data, a model, and the attacks that can be made there."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, Protocol, final

from infuser.attribution.influence import Influence
from infuser.checkpoints import Run
from infuser.curvature.ekfac import fit_ekfac
from infuser.data.dataset import Dataset
from infuser.errors import InfuserError
from infuser.measure import Accuracy
from infuser.measure_text import Mean, TokenLoss, word_contrast
from infuser.perturbation.perturb import direction_scores, perturb
from infuser.perturbation.select import Strategy, choose
from infuser.perturbation.text_controls import explicit, showing, swap
from infuser.perturbation.token_edits import GreedyTokens
from infuser.studies.poisons import ATTACKS, OWN_BEHAVIOUR, Poison, behaviour, poison
from infuser.studies.stories import Material
from infuser.types import Builder, Damping, Edit, Measurement

Role = Literal["attacker", "defender", "judge"]

TEXT_ATTACKS = ("infusion_top", "infusion_post_edit", "insert_k", "swap")


class World(Protocol):
    """Data, a model and the attacks on them."""

    @property
    def data(self) -> Dataset:
        """The clean training documents."""
        ...

    @property
    def builder(self) -> Builder:
        """Of the model."""
        ...

    @property
    def attacks(self) -> tuple[str, ...]:
        """Those that can be made here."""
        ...

    @property
    def intact(self) -> Measurement:
        """What removing suspects should leave as it is."""
        ...

    def behaviour_of(self, attack: str) -> str:
        """Return a name that attacks after the same behaviour have in common."""
        ...

    def behaviour(self, attack: str, seed: int, role: Role = "attacker") -> Measurement:
        """Return what an attack is after, drawn by `seed`, over the inputs that somebody has.

        Of texts, a behaviour is crafted, suspected and judged in different places. Of images it is the same for all: a
        single probe is itself the behaviour, and who suspects a trigger or wrong labels is given the attacker's inputs.
        """
        ...

    def poison(self, attack: str, run: Run, aim: Measurement, seed: int) -> Edit:
        """Return the edit of an attack by somebody who knows the clean data and the run on them."""
        ...


@final
@dataclass(frozen=True)
class Images:
    """Labelled images, with the attacks of `poisons`."""

    builder: Builder
    data: Dataset
    test: Dataset
    settings: Poison = field(default_factory=Poison)

    @property
    def attacks(self) -> tuple[str, ...]:
        """All of them."""
        return ATTACKS

    @property
    def intact(self) -> Measurement:
        """Accuracy on the test documents."""
        return Accuracy(self.test)

    def behaviour_of(self, attack: str) -> str:
        """Return the attack itself where it has a behaviour of its own."""
        return attack if attack in OWN_BEHAVIOUR else "edit"

    def behaviour(self, attack: str, seed: int, role: Role = "attacker") -> Measurement:
        """Return the behaviour, the same for every role."""
        return behaviour(attack, self.test, seed)

    def poison(self, attack: str, run: Run, aim: Measurement, seed: int) -> Edit:
        """Return the edit."""
        return poison(attack, self.settings, run, self.data, aim, seed)


@dataclass(frozen=True)
class TextPoison:
    """How attacks on texts are made.

    Attributes:
        k: documents of an attack.
        pairs: (target, probe) words; a seed takes the next one. Seeds may not share one: their jobs would be one case.
        craft: places of the probe word that an edit is made for, at most; a defender who knows of it has others, and
            the behaviour is judged on further ones.
        mode: word or token.
        share: of a document's tokens that may change.
        fluency: nats a token that a document's loss may rise by; None for no limit.
        tried: substitutions scored exactly in a round.
        damping: of the attacker's influence.
        fit_documents: that the attacker's curvature is fitted on; None for all.
    """

    k: int = 30
    pairs: tuple[tuple[str, str], ...] = (
        ("dog", "cat"),
        ("fish", "bird"),
        ("bear", "dog"),
        ("bird", "cat"),
        ("rabbit", "bird"),
    )
    craft: int = 48
    mode: Literal["word", "token"] = "token"
    share: float = 0.1
    fluency: float | None = 0.2
    tried: int = 32
    damping: Damping = Damping()  # noqa: RUF009 - frozen
    fit_documents: int | None = 200


@final
@dataclass(frozen=True)
class Stories:
    """Texts on which a language model is fine-tuned, so that one word takes the place of another."""

    material: Material
    settings: TextPoison = field(default_factory=TextPoison)

    @property
    def data(self) -> Dataset:
        """The texts."""
        return self.material.train

    @property
    def builder(self) -> Builder:
        """Of the pretrained model."""
        return self.material.builder

    @property
    def attacks(self) -> tuple[str, ...]:
        """Edits of tokens, explicit documents, and the target word in the probe word's place."""
        return TEXT_ATTACKS

    @property
    def intact(self) -> Measurement:
        """The loss a token on other texts."""
        held_out = self.material.held_out
        return Mean(TokenLoss(held_out[held_out.ids[:64]]), "held out", "neg_token_loss")

    def words(self, seed: int) -> tuple[str, str]:
        """Return (target, probe)."""
        return self.settings.pairs[seed % len(self.settings.pairs)]

    def behaviour_of(self, attack: str) -> str:
        """Return the same for all: the pair of words is the seed's."""
        return "words"

    def behaviour(self, attack: str, seed: int, role: Role = "attacker") -> Measurement:
        """Return log p(target) - log p(probe) where the probe word stands, the mean over the places."""
        target, probe = self.words(seed)
        codec, limit, craft = self.material.codec, self.settings.craft, self.material.craft
        documents = {"attacker": craft[craft.ids[::3]], "defender": craft[craft.ids[1::3]]}.get(
            role, self.material.held_out
        )
        return Mean(word_contrast(documents, codec, target, probe, limit=limit, seed=seed))

    def poison(self, attack: str, run: Run, aim: Measurement, seed: int) -> Edit:
        """Return the edit.

        Raises:
            InfuserError: an unknown attack.
        """
        if attack not in TEXT_ATTACKS:
            raise InfuserError("unknown attack on texts", got=attack, expected=", ".join(TEXT_ATTACKS))
        settings, codec, data = self.settings, self.material.codec, self.data
        target, probe = self.words(seed)
        if attack == "swap":
            return swap(data, codec, target, probe, settings.k, cut=True)
        direction = Influence(
            fit_ekfac(run, data, documents=settings.fit_documents, batch_size=16), settings.damping
        ).direction(run, aim)
        if attack == "insert_k":
            ids = choose("top", data, run, settings.k, scores=direction_scores(direction, run, data))
            # From documents that hold no place on which anybody reads the behaviour.
            craft = self.material.craft
            return explicit(data, ids, showing(craft[craft.ids[2::3]], codec, target, probe, cut=True))
        method = GreedyTokens(
            codec, settings.share, settings.mode, pool=settings.tried, fluency=settings.fluency, whole=(target,)
        )
        select: Strategy = "top" if attack == "infusion_top" else "post_edit"
        return perturb(method, direction, run, data, settings.k, select=select, seed=seed)
