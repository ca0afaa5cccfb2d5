"""
Which training digits matter
============================

Which training digits make the model read a test digit as it does? Proponents and opponents of one prediction.
"""

import infuser as inf

train_set, test_set = inf.data.digits()
run = inf.train(inf.models.simple_cnn, train_set, inf.Recipe(epochs=3, batch_size=32, lr=0.05))
probe = inf.measure.LogProb(test_set[test_set.ids[:1]])

influence = inf.Influence(inf.fit_ekfac(run, train_set), damping=0.1)
scores = inf.attribute(influence, run, train_set, probe)

print(f"Test digit {probe.queries[0]} (id->label), {scores.method}, {scores.unit}")
for word, ids in (("proponents", scores.top(5)), ("opponents", scores.bottom(5))):
    print(word, [(int(i), train_set.classes[train_set[[i]].targets[0]]) for i in ids])
same = (train_set[scores.top(20)].targets == probe.labels[0]).mean()
print(f"{100 * same:.0f} % of the 20 strongest proponents carry the probe's own label")
