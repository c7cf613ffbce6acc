"""The bookkeeping of in-graph speculative decoding, as ONNX text. One value a line, about 90 small operators.

Shapes: L tokens so far, S of them unread, f guesses fed behind them, d of those drafted (d <= f), E
end-of-sequence ids, V the vocabulary. Numbers are int64 [1], so that they concatenate and slice.

Written for a GPU as well: all of ``DRAFT`` and ``ACCEPT`` has to run on the CPU there, or every number would
cross on its own and wait for the device. ONNX Runtime gives a node to the CPU, though the GPU has a kernel
for it, if the node reads what another node on the CPU made, and beside that only small constants and the
graph's inputs; and if the GPU's kernel would not want that one value on the CPU by itself
(``GetCpuPreferredNodes`` in its sources). What follows from it:

- The state is one tensor, seven numbers in front of the tokens: one copy into a step, and one out of it.
- ``none``, a zero made of a Shape, which is always the CPU's, is added to the state: so that is read there.
  What the GPU computed is taken over with BitwiseOr, for which no GPU kernel exists.
- Bounds that are computed select with Compress and Gather. Slice, Range and ConstantOfShape want them on the
  CPU and work on the GPU, which only the mask and the positions should: they are read there.

Two copies a step are left in the body: the tokens that are read, and the choices
(docs/decisions/0019-cuda-placement.md; the proof of a CUDA target looks whether it is so).
"""

BEGIN = """
begin (int64[1,S] input_ids, int64 max_new_tokens, int64 max_draft_tokens, int64[1] context,
       float temperature) => (int64[M] state, bool going, int64[1] capacity)
{
  zero = Constant<value_ints=[0]>()
  first = Constant<value_ints=[4]>()
  scalar = Constant<value_ints=[1]>()
  flat = Constant<value_ints=[-1]>()
  tokens = Reshape(input_ids, flat)
  length = Shape(tokens)
  asked = Reshape(max_new_tokens, scalar)
  some = Max(asked, zero)
  bounded = Min(some, context)
  wanted = Add(length, bounded)
  limit = Min(wanted, context)
  drafts = Reshape(max_draft_tokens, scalar)
  least = Max(drafts, zero)
  most = Min(least, context)
  wish = Min(most, first)
  counts = Constant<value_ints=[0, 0, 0]>()
  cold = Constant<value_float=0.0>()
  warm = Greater(temperature, cold)
  one_if_warm = Cast<to=7>(warm)
  mode = Reshape(one_if_warm, scalar)
  state = Concat<axis=0>(counts, zero, wish, most, mode, tokens)
  fits = Less(length, limit)
  begun = Greater(length, zero)
  room = And(fits, begun)
  going = Squeeze(room, zero)
  capacity = Where(room, limit, zero)
}
"""
"""The prompt, and a cache that has room for the whole answer. That ends at the context's end at the latest; a
prompt that fills the context, or that is empty, gets none, and no cache."""

DRAFT = """
draft (int64[M] state, float[1,H,C,D] past, int64[1] chunk)
    => (int64[1,n] input_ids, int64[1,t] attention_mask, int64[1,n] position_ids, int64 keep, int64 need,
        int64[L] tokens, int64[7] numbers, int64[1] none, int64[1] limit, int64[1] end, int64[f] guess,
        int64[f] places, int64[a] answer_places, int64[1] drafted, bool[1] reading, bool[1] drawing)
{
  zero = Constant<value_ints=[0]>()
  one = Constant<value_ints=[1]>()
  two = Constant<value_ints=[2]>()
  three = Constant<value_ints=[3]>()
  four = Constant<value_ints=[4]>()
  five = Constant<value_ints=[5]>()
  six = Constant<value_ints=[6]>()
  usual = Constant<value_ints=[7]>()
  head = Constant<value_ints=[7]>()
  last_one = Constant<value_ints=[-1]>()
  last_two = Constant<value_ints=[-2]>()
  last_three = Constant<value_ints=[-3]>()
  infinity = Constant<value_ints=[9223372036854775807]>()
  axis = Constant<value_int=0>()
  step = Constant<value_int=1>()
  nothing = Constant<value_ints=[-1, -1, -1]>()

  limit = Shape<start=2, end=3>(past)
  none = Sub(limit, limit)
  held = Add(state, none)
  numbers = Slice(held, zero, head)
  tokens = Slice(held, head, infinity)
  base = Gather<axis=0>(numbers, three)
  wish = Gather<axis=0>(numbers, four)
  most = Gather<axis=0>(numbers, five)
  mode = Gather<axis=0>(numbers, six)
  drawing = Greater(mode, zero)
  length = Shape(tokens)

  ahead = Add(base, chunk)
  end = Min(ahead, length)
  reading = Less(end, length)
  unread = Sub(end, base)
  single = Equal(unread, one)
  begun = Greater(base, zero)
  may = And(single, begun)

  padded = Concat<axis=0>(nothing, tokens)
  ends1 = Slice(padded, two, last_one)
  ends2 = Slice(padded, one, last_two)
  ends3 = Slice(padded, zero, last_three)
  last1 = Slice(padded, last_one, infinity)
  last2 = Slice(padded, last_two, last_one)
  last3 = Slice(padded, last_three, last_two)
  equal1 = Equal(ends1, last1)
  equal2 = Equal(ends2, last2)
  equal3 = Equal(ends3, last3)
  match2 = And(equal1, equal2)
  match3 = And(match2, equal3)
  score1 = Cast<to=6>(equal1)
  score2 = Cast<to=6>(match2)
  score3 = Cast<to=6>(match3)
  score12 = Add(score1, score2)
  score = Add(score12, score3)
  best = ArgMax<axis=0, keepdims=1, select_last_index=1>(score)
  match_length = Gather<axis=0>(score, best)
  period = Sub(length, best)

  long = Cast<to=7>(match_length)
  whole = GreaterOrEqual(long, three)
  solid = GreaterOrEqual(long, two)
  eager = Max(wish, usual)
  hopeful = Where(solid, three, one)
  trusted = Where(whole, eager, hopeful)
  willing = Min(trusted, most)
  budget = Sub(limit, length)
  behind = Sub(budget, one)
  allowed = Min(willing, behind, length)
  draft_now = Cast<to=7>(may)
  drafted = Mul(allowed, draft_now)
  filler = Cast<to=7>(single)
  some = Max(drafted, filler)
  rows = Add(unread, some)
  odd = Mod(rows, two)
  guesses = Add(some, odd)

  itself = Equal(padded, padded)
  ones = Cast<to=7>(itself)
  line = CumSum<exclusive=1>(ones, axis)
  answering = LessOrEqual(line, guesses)
  answer_places = Compress<axis=0>(line, answering)
  places = Slice(answer_places, zero, last_one)
  turn = Mod(places, period)
  at = Add(best, turn)
  guess = Gather<axis=0>(tokens, at)

  token_places = Slice(line, zero, last_three)
  from_base = GreaterOrEqual(token_places, base)
  before_end = Less(token_places, end)
  now = And(from_base, before_end)
  own = Compress<axis=0>(tokens, now)
  fed = Concat<axis=0>(own, guess)
  input_ids = Unsqueeze(fed, zero)
  total = Add(end, guesses)
  row = Concat<axis=0>(one, total)
  attention_mask = ConstantOfShape<value=int64[1] {1}>(row)
  from = Squeeze(base, zero)
  to = Squeeze(total, zero)
  positions = Range(from, to, step)
  position_ids = Unsqueeze(positions, zero)
  answers = Add(guesses, one)
  need = Squeeze(answers, zero)
  odd_answers = Mod(answers, two)
  even_answers = Add(answers, odd_answers)
  keep = Squeeze(even_answers, zero)
}
"""
"""What the decoder reads: unread tokens and guesses at what follows them.

The guess is the text behind the latest of the longest matches (up to three tokens) of its own end, repeated
with that period; without a match the last token, again. A match of one token is good for one guess, of two
for three, of three for seven, or for more where the last ones were all right; and no guess is longer than the
text. Drafting starts when the prompt is read. Every run reads an even number of rows, and its head as many: a
row left alone rounds differently in several kernels (docs/decisions/0016-exact-speculation.md). So a guess
may be fed without being drafted. ``-1`` stands before the text, so that no axis is ever empty, and ``line``
is as long as any guess and its answers.
"""

ACCEPT = """
accept (int64[L] tokens, int64[7] numbers, int64[2,a] seen, int64[1] none, int64[1] limit, int64[1] end,
        int64[f] guess, int64[f] places, int64[1] drafted, bool[1] reading) => (bool going, int64[M] state)
{
  zero = Constant<value_ints=[0]>()
  one = Constant<value_ints=[1]>()
  two = Constant<value_ints=[2]>()
  three = Constant<value_ints=[3]>()
  four = Constant<value_ints=[4]>()
  five = Constant<value_ints=[5]>()
  seven = Constant<value_ints=[7]>()
  last = Constant<value_ints=[-1]>()
  axis = Constant<value_int=0>()
  choice_row = Constant<value_int=0>()
  end_row = Constant<value_int=1>()
  sure = Constant<value_ints=[0]>()

  host = BitwiseOr(seen, none)
  choices = Gather<axis=0>(host, choice_row)
  ends = Gather<axis=0>(host, end_row)
  chosen = Slice(choices, zero, last)
  same = Equal(chosen, guess)
  other = Not(same)
  beyond = GreaterOrEqual(places, drafted)
  refused = Or(other, beyond)
  wrong = Cast<to=7>(refused)
  misses = CumSum(wrong, axis)
  all_misses = Concat<axis=0>(sure, misses)
  true_until = Equal(all_misses, zero)
  right = Cast<to=7>(true_until)
  added_most = ReduceSum<keepdims=1>(right, zero)
  accepted = Sub(added_most, one)

  ended_before = CumSum<exclusive=1>(ends, axis)
  open = Equal(ended_before, zero)
  answering = Not(reading)
  speaking = And(open, answering)
  kept = And(true_until, speaking)
  added = Compress<axis=0>(choices, kept)
  longer = Concat<axis=0>(tokens, added)
  base = Add(end, accepted)

  size = Shape(longer)
  within = Less(size, limit)
  kept_ends = Compress<axis=0>(ends, kept)
  ending = ReduceSum<keepdims=1>(kept_ends, zero)
  unended = Equal(ending, zero)
  on = And(within, unended)
  going = Squeeze(on, zero)

  wish = Gather<axis=0>(numbers, four)
  most = Gather<axis=0>(numbers, five)
  fixed = Slice(numbers, five, seven)
  counts = Slice(numbers, zero, three)
  gained = Shape(added)
  useful = Min(accepted, gained)
  tally = Concat<axis=0>(one, drafted, useful)
  next_counts = Add(counts, tally)

  all_right = Equal(accepted, drafted)
  double = Mul(wish, two)
  more = Max(double, one)
  upto = Add(accepted, one)
  fresh = Where(all_right, more, upto)
  tried = Greater(drafted, zero)
  changed = Where(tried, fresh, wish)
  next_wish = Min(changed, most)
  state = Concat<axis=0>(next_counts, base, next_wish, fixed, longer)
}
"""
"""What the model's own choices (and which of them end the text) make of the guesses.

Those that equal its choices stand, up to the first that does not; its choice there comes behind them. An
end-of-sequence token ends the answer, wherever it stands. ``base`` tells how many lines of the cache hold
true tokens: moving it is all that a rejected guess costs, since the next run writes over what it left.
"""

END = """
end (int64[M] state)
    => (int64[1,N] sequences, int64 num_steps, int64 num_drafted_tokens, int64 num_accepted_tokens)
{
  zero = Constant<value_ints=[0]>()
  head = Constant<value_ints=[7]>()
  infinity = Constant<value_ints=[9223372036854775807]>()
  steps = Constant<value_int=0>()
  drafts = Constant<value_int=1>()
  hits = Constant<value_int=2>()
  tokens = Slice(state, head, infinity)
  sequences = Unsqueeze(tokens, zero)
  num_steps = Gather<axis=0>(state, steps)
  num_drafted_tokens = Gather<axis=0>(state, drafts)
  num_accepted_tokens = Gather<axis=0>(state, hits)
}
"""

OUTPUTS = ("sequences", "num_steps", "num_drafted_tokens", "num_accepted_tokens")
