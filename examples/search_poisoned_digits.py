"""
Search a poisoned training set
==============================

Edit 28 of 1,438 training digits, train on what a defender would get, and ask several detectors which they were.
"""

import infuser as inf
from infuser.detection import PixelNoise, RandomOrder, SelfInfluence, TrainingLoss, detect, observers_of
from infuser.evaluation.finding import find, lift

train_set, test_set = inf.data.digits()
recipe = inf.Recipe(epochs=4, batch_size=32, lr=0.1, momentum=0.9)
detectors = [RandomOrder(), TrainingLoss(), SelfInfluence(), PixelNoise()]


def trained(data: inf.Dataset) -> inf.Run:
    """Train with everything recorded that the detectors read."""
    return inf.train(inf.models.mlp, data, recipe, observers=observers_of(detectors, data))


clean = trained(train_set)
documents = test_set[test_set.ids[:1]]
probe = inf.measure.Margin(documents, (documents.targets + 3) % 10)
direction = inf.Influence(inf.fit_ekfac(clean, train_set), damping=0.1).direction(clean, probe)
edit = inf.perturb(inf.PGD(inf.Linf(16), steps=10), direction, clean, train_set, k=28)

poisoned = train_set.apply(edit)  # all that the defender gets
audit = trained(poisoned)
for detector in detectors:
    after = detect(detector, audit, poisoned)
    before = detect(detector, clean, train_set)  # the same documents before anyone edited them
    print(after.detector)
    print("  recall among the 28 most suspicious:", find(after, edit.ids).estimates["recall_at_k"])
    print("  area under the ROC curve:", find(after, edit.ids).estimates["roc_auc"])
    print("  of which the edit itself adds:", lift(after, before, edit.ids)["roc_auc"])
