"""Choosing tokens inside the graph, as ONNX text: the likeliest, or a draw."""


def _mix(source: str, result: str) -> str:
    """A hash of 32 bits in int64, which no product overflows: two rounds of xor-shift and multiply."""
    lines, value = [], source
    for turn in ("a", "b"):
        name = f"{result}_{turn}"
        lines += [
            f"{name}1 = Div({value}, half)",
            f"{name}2 = BitwiseXor({value}, {name}1)",
            f"{name}3 = Mul({name}2, multiplier)",
            f"{name}4 = BitwiseAnd({name}3, mask)",
        ]
        value = f"{name}4"
    lines += [f"{result}_5 = Div({value}, half)", f"{result} = BitwiseXor({value}, {result}_5)"]
    return "\n      ".join(lines)


CHOOSE = f"""
choose (float[1,r,V] logits, int64 need, int64[L] tokens, float temperature, int64 top_k, float top_p,
        int64 seed) => (int64[r] choices)
{{
  zero = Constant<value_ints=[0]>()
  one = Constant<value_ints=[1]>()
  end = Constant<value_ints=[9223372036854775807]>()
  number = Cast<to=1>(logits)
  back = Neg(need)
  start = Reshape(back, one)
  last = Slice(number, start, end, one)
  rows = Squeeze(last, zero)
  greedy = Constant<value_float=0.0>()
  drawing = Greater(temperature, greedy)
  choices = If(drawing) <
    then_branch = draw () => (int64[r] drawn) {{
      size = Shape<start=1, end=2>(rows)
      wanted = Reshape(top_k, one)
      given = Greater(wanted, zero)
      least = Min(wanted, size)
      count = Where(given, least, size)
      values, ids = TopK<axis=1>(rows, count)
      likeliest = Slice(values, zero, one, one)
      below = Sub(values, likeliest)
      scaled = Div(below, temperature)
      chance = Softmax<axis=1>(scaled)
      axis = Constant<value_int=1>()
      before = CumSum<exclusive=1>(chance, axis)
      kept = Less(before, top_p)
      nothing = Constant<value_float=0.0>()
      weight = Where(kept, chance, nothing)
      sums = CumSum(weight, axis)
      whole = ReduceSum<keepdims=1>(weight, one)

      half = Constant<value_int=65536>()
      multiplier = Constant<value_int=73244475>()
      mask = Constant<value_int=4294967295>()
      word = Constant<value_int=4294967296>()
      stride = Constant<value_int=1640531527>()
      low = BitwiseAnd(seed, mask)
      upper = Div(seed, word)
      high = BitwiseAnd(upper, mask)
      {_mix("low", "key_low")}
      key_both = BitwiseXor(key_low, high)
      {_mix("key_both", "key")}
      from = Constant<value_int=0>()
      step = Constant<value_int=1>()
      many = Range(from, need, step)
      length = Shape(tokens)
      place = Add(many, length)
      strided = Mul(place, stride)
      counter = BitwiseAnd(strided, mask)
      {_mix("counter", "spread")}
      keyed = BitwiseXor(spread, key)
      {_mix("keyed", "hash")}
      byte = Constant<value_int=256>()
      bits = Div(hash, byte)
      bits_float = Cast<to=1>(bits)
      unit = Constant<value_float=5.9604644775390625e-08>()
      uniform = Mul(bits_float, unit)
      column = Unsqueeze(uniform, one)
      mark = Mul(column, whole)
      passed = LessOrEqual(sums, mark)
      passed_count = Cast<to=7>(passed)
      index = ReduceSum<keepdims=1>(passed_count, one)
      kept_count = Cast<to=7>(kept)
      all_kept = ReduceSum<keepdims=1>(kept_count, one)
      top = Sub(all_kept, one)
      inside = Min(index, top)
      sure = Max(inside, zero)
      picked = GatherElements<axis=1>(ids, sure)
      drawn = Squeeze(picked, one)
    }},
    else_branch = take () => (int64[r] best) {{
      best = ArgMax<axis=1, keepdims=0>(rows)
    }}
  >
}}
"""
"""The token behind each of the last ``need`` rows: the likeliest, or at a positive temperature a draw.

``top_k`` (0: all) and then ``top_p`` leave some, as transformers does it. The number that draws follows from
``seed`` and the token's place in the sequence alone, and a guess stands where it equals the draw. That is
exact speculative sampling from a draft that is certain (Leviathan et al. 2023: accepted with probability
p(guess), else drawn from what remains), and more: equal seeds give equal tokens however many were drafted. No
random operator: ONNX Runtime 1.31 has none for the CPU from opset 22 on.
"""
