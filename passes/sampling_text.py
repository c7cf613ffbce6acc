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
choose (float[1,r,V] logits, int64 need, bool[1] drawing, int64[L] tokens, int64[r] places,
        int64[E] eos_token_id, float temperature, int64 top_k, float top_p, int64 seed) => (int64[2,r] seen)
{{
  zero = Constant<value_ints=[0]>()
  one = Constant<value_ints=[1]>()
  infinity = Constant<value_ints=[9223372036854775807]>()
  number = Cast<to=1>(logits)
  back = Neg(need)
  start = Reshape(back, one)
  last = Slice(number, start, infinity, one)
  rows = Squeeze(last, zero)
  length = Shape(tokens)
  place = Add(places, length)
  choices = If(drawing) <
    then_branch = draw () => (int64[r] drawn) {{
      size = Shape<start=1, end=2>(rows)
      host = Sub(size, size)
      wanted = Add(top_k, host)
      given = Greater(wanted, first)
      least = Min(wanted, size)
      count = Where(given, least, size)
      values, ids = TopK<axis=1>(rows, count)
      first = Constant<value_ints=[0]>()
      second = Constant<value_ints=[1]>()
      likeliest = Slice(values, first, second, second)
      below = Sub(values, likeliest)
      scaled = Div(below, temperature)
      chance = Softmax<axis=1>(scaled)
      axis = Constant<value_int=1>()
      before = CumSum<exclusive=1>(chance, axis)
      kept = Less(before, top_p)
      zero_chance = Constant<value_float=0.0>()
      weight = Where(kept, chance, zero_chance)
      sums = CumSum(weight, axis)
      whole = ReduceSum<keepdims=1>(weight, second)

      half = Constant<value_int=65536>()
      multiplier = Constant<value_int=73244475>()
      mask = Constant<value_int=4294967295>()
      word = Constant<value_int=4294967296>()
      stride = Constant<value_int=1640531527>()
      number_seed = BitwiseOr(seed, host)
      low = BitwiseAnd(number_seed, mask)
      upper = Div(number_seed, word)
      high = BitwiseAnd(upper, mask)
      {_mix("low", "key_low")}
      key_both = BitwiseXor(key_low, high)
      {_mix("key_both", "key")}
      spot = BitwiseOr(place, host)
      strided = Mul(spot, stride)
      counter = BitwiseAnd(strided, mask)
      {_mix("counter", "spread")}
      keyed = BitwiseXor(spread, key)
      {_mix("keyed", "hash")}
      byte = Constant<value_int=256>()
      bits = Div(hash, byte)
      bits_float = Cast<to=1>(bits)
      unit = Constant<value_float=5.9604644775390625e-08>()
      uniform = Mul(bits_float, unit)
      column = Unsqueeze(uniform, second)
      mark = Mul(column, whole)
      passed = LessOrEqual(sums, mark)
      passed_count = Cast<to=7>(passed)
      index = ReduceSum<keepdims=1>(passed_count, second)
      kept_count = Cast<to=7>(kept)
      all_kept = ReduceSum<keepdims=1>(kept_count, second)
      top = Sub(all_kept, second)
      inside = Min(index, top)
      sure = Max(inside, first)
      picked = GatherElements<axis=1>(ids, sure)
      drawn = Squeeze(picked, second)
    }},
    else_branch = take () => (int64[r] best) {{
      best = ArgMax<axis=1, keepdims=0>(rows)
    }}
  >
  choice_column = Unsqueeze(choices, one)
  meets = Equal(choice_column, eos_token_id)
  meeting = Cast<to=7>(meets)
  ends = ReduceSum<keepdims=0>(meeting, one)
  choice_row = Unsqueeze(choices, zero)
  end_row = Unsqueeze(ends, zero)
  seen = Concat<axis=0>(choice_row, end_row)
}}
"""
"""The token behind each of the last ``need`` rows: the likeliest, or at a positive temperature a draw. Below
the tokens stands for each whether it ends the text (0: no).

``top_k`` (0: all) and then ``top_p`` leave some, as transformers does it. The number that draws follows from
``seed`` and the token's place in the sequence alone, and a guess stands where it equals the draw. That is
exact speculative sampling from a draft that is certain (Leviathan et al. 2023: accepted with probability
p(guess), else drawn from what remains), and more: equal seeds give equal tokens however many were drafted. No
random operator: ONNX Runtime 1.31 has none for the CPU from opset 22 on.

On a GPU all of this stays there but the numbers that draw, which nothing but integer operators make; the
choices and which of them end the text cross in one copy.
"""
