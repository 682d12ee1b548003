"""The instrument: one attention function that returns the output and exact statistics, and never keeps a map.

A model calls its attention once per layer. transformers lets a library register the function that answers
(:mod:`~sinkscope.attention.seam`), so every call of every architecture arrives here as one
:class:`~sinkscope.attention.call.Call`: queries q, keys k and values v after rotary positions, a scale, a mask kept as
a rule (:mod:`~sinkscope.attention.masks`), and what the architecture adds. What is asked of it is a
:class:`~sinkscope.attention.view.Wants`, what comes back a :class:`~sinkscope.attention.view.LayerStats`, and what is
to be changed a :class:`~sinkscope.attention.call_edits.CallEdits` made of primitives
(:mod:`~sinkscope.attention.primitives`). :mod:`~sinkscope.attention.paths` chooses how to compute it.

The reference is the blockwise pass (:mod:`~sinkscope.attention.blockwise`). Let t_ij = scale q_i . k_j be the logits of
query i, lse_i = log sum_j exp t_ij its log-sum-exp and p_ij = exp(t_ij - lse_i) its weights. A map p of T x T numbers
is what a model's memory cannot hold at length, so the pass walks over tiles of 128 query rows and some heads, forms the
weights of one tile, multiplies them with the values, folds them into what is kept, and overwrites them. Memory is
linear in T. These identities make it nearly as cheap as the plain kernel, and exact:

* **Log-sum-exp from the largest weight**: max_j p_ij = exp(max_j t_ij - lse_i), so lse_i = max t - log max p. One fused
  softmax and two maxima replace a second exponential of the tile (:mod:`~sinkscope.attention.normalise`).
* **Entropy**: -sum_j p log p = lse_i - sum_j p_ij t_ij, one product and one sum, no logarithm of a tile
  (:mod:`~sinkscope.attention.reductions`). Hidden keys have a large finite logit, so that 0 x t stays 0.
* **Denominators with implicit sinks**: a learned sink logit s (GPT-OSS), a null key, softmax-off-by-one (s = 0) and a
  key without a value are further terms of the denominator. With lse' = log(exp lse + exp s) the weights are the
  softmax over the keys times exp(lse - lse'), and 1 minus that factor is the share on no key
  (:mod:`~sinkscope.attention.normalise`).
* **Column sums**: sum_i p_ij over real queries is a row vector times the tile, added up over row blocks; key mass is
  that sum over the number of queries that see key j (:mod:`~sinkscope.attention.masks` counts them from the rule).
* **Role shares**: the shares of a softmax row add up to 1, so the most frequent role gets 1 minus the others and only
  the columns of the others are summed (:mod:`~sinkscope.attention.reductions`).
* **Edits as log-biases**: multiplying the weight of a key by g and renormalising the row is adding log g to its logit,
  exactly; g = 0 hides the key (:mod:`~sinkscope.attention.primitives`).

On a GPU every statistic comes from the library's kernel and its log-sum-exp (:mod:`~sinkscope.attention.gpu`): weights
are exp(t_ij - lse_i), formed again tile by tile in Triton kernels (:mod:`~sinkscope.attention.kernels`), and the terms
of the entropy are p_ij (lse_i - t_ij), none of them negative.

Where less than every weight is needed, the library's fused kernel computes the call, under three more identities:

* **Few-keys shares** (:mod:`~sinkscope.attention.fused`): the kernel returns lse_i with the output, so the weights on
  some keys J are exp(t_iJ - lse_i), a thin product.
* **First keys apart** (:mod:`~sinkscope.attention.merged`): a row over [first n keys | the rest] is a softmax over
  n + 1 entries, the last of them the log-sum-exp of the rest, whose output the kernel gives. Edits of the first keys
  act on that short row.
* **Augmented dimensions** (:mod:`~sinkscope.attention.augdim`): with q' = [q | a / scale] and k' = [k | m] the logits
  are scale q . k + a m: a log-bias a on the key set m without a mask tensor, for every kernel and every gradient.

:mod:`~sinkscope.attention.rows` cuts one call into parts of the batch with edits of their own (variants of a sweep),
and :mod:`~sinkscope.attention.dense` reads the same statistics off a map that someone else made. Tests hold every path
equal to dense attention in float64.
"""
