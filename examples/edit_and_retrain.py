"""
Edit, retrain, compare
======================

Edit 14 of 1,438 training digits by at most 16/255 a pixel, retrain the last epoch, compare with clean and noise.
"""

import infuser as inf

train_set, test_set = inf.data.digits()
run = inf.train(inf.models.tiny_resnet, train_set, inf.Recipe(epochs=3, batch_size=32, lr=0.02))
documents = test_set[test_set.ids[:3]]
probes = inf.measure.Margin(documents, (documents.targets + 3) % 10)
influence = inf.Influence(inf.fit_ekfac(run, train_set), damping=0.1)
method = inf.PGD(inf.Linf(16), steps=10)

trials = []
for q in range(len(probes)):
    edit = inf.perturb(method, influence.direction(run, probes[q]), run, train_set, k=14)
    arms = inf.arms(train_set, {"edit": edit}, probes[q], controls=("clean", "noise"), seed=q)
    trials.append(inf.retrain(run, arms, probes[q], seeds=(1, 2), start="last_epoch"))
pooled = inf.Trials.concat(trials)
for control in ("clean", "noise"):
    print(inf.compare(pooled, arm="edit", control=control))
