"""Reads from a model's computation, its jaxpr, how each parameter enters it.

An abstract interpreter: a value is a `Constant`, a `Weight` (which parts of which leaves, in which layout) or an
`Active` one (after how many products, from where), and each primitive has one rule. What the rules decide:

What is a layer
  - Whatever multiplies and then sums is a product. An activation times a weight remembers both; a sum over a dimension
    that both share makes a layer. So does a sum of shifted parts of one activation, each times another row of one
    weight (a depthwise convolution, Mamba's). Parts are known by their origin: learned weights of two streams are no
    layer. A `dot_general` that contracts nothing scales.
  - Rows of a weight that an input chooses (experts, species) are a layer once a product contracts them. Two looked-up
    embeddings multiplied are none.
  - A product with a constant is part of a weight, or a layer fed by a constant. What the product meets decides, so that
    `Reader.later` puts the question off until then.
  - A leaf added to a product through shape changes, casts, sums and constant factors is its bias, unless it varies over
    places (positions).
  - Parts of a layer side by side (gates, fused qkv) add up. Terms in one place (W + AB) count as the largest, and A·B
    as the sum of its factors. A layer of several leaves is named after the first one, in natural order, whose main
    product it is.
  - Experts in `einsum("bi,eio->beo")` are output units of one product; in a batched product they are copies. `vmap`
    over unbatched inputs leaves no batch axis in the first layer's product: a later product that takes the axis as a
    batch axis shows that it counts copies.
  - Products of a way back, known by `transpose` in the name stack that jax writes at linearization, are uses of kind
    `backward`. They have no layer and add no depth.

How deep it is
  - Depth is the least over all uses, lookups included. A tied embedding has depth 0; axes, layer and macs come from its
    product. Other uses of a weight (a penalty, a flow's determinant) do not count.
  - A loop that picks a product's weight by its counter runs over layers: it is read iteration by iteration, with plain
    numbers. Every other loop counts once: its body is rehearsed with a probe for each carried value (a matrix of
    longest paths in the max-plus algebra), then read.
  - In a loop over time a state that starts as a constant is as deep as it may be without making what the loop gives
    back deeper. So recurrent kernels have the depth of the products they are added to, be there one loop, a loop for
    each layer or none.
  - Branches that a loop's counter chooses count in the iterations that choose them. Rows that a loop gives out all have
    the depth of the deepest.

Where a normaliser follows each unit
  - A product's results are multiplied by the inverse root of a statistic of their own over all places, or divided by
    the root. A parameter with a number for each unit (running variance) counts as such a statistic.
  - A curved function before the normaliser (tanh, GELU) ends the search, as length has an effect there. Whether the
    results are used unnormalised as well is not asked.
"""
