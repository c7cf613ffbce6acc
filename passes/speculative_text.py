"""The bookkeeping of in-graph speculative decoding, as ONNX text. One value a line, about 90 small operators.

Shapes: L tokens so far, S of them unread, f guesses fed behind them, d of those drafted (d <= f), E
end-of-sequence ids, V the vocabulary. Numbers are int64 [1], so that they concatenate and slice.
"""

BEGIN = """
begin (int64[1,S] input_ids, int64 max_new_tokens, int64 max_draft_tokens, int64[1] context)
    => (int64[S] tokens, int64[1] base, int64[1] wish, int64[3] counts, bool going,
        int64[1] limit, int64[1] most, int64[1] capacity)
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
  base = Constant<value_ints=[0]>()
  counts = Constant<value_ints=[0, 0, 0]>()
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
draft (int64[L] tokens, int64[1] base, int64[1] wish, int64[1] limit, int64[1] chunk)
    => (int64[1,n] input_ids, int64[1,t] attention_mask, int64[1,n] position_ids, int64 keep, int64 need,
        int64[1] end, int64[f] guess, int64[1] drafted, bool[1] reading)
{
  zero = Constant<value_ints=[0]>()
  one = Constant<value_ints=[1]>()
  two = Constant<value_ints=[2]>()
  three = Constant<value_ints=[3]>()
  number = Constant<value_int=0>()
  step = Constant<value_int=1>()
  nothing = Constant<value_ints=[-1, -1, -1]>()
  length = Shape(tokens)

  ahead = Add(base, chunk)
  end = Min(ahead, length)
  reading = Less(end, length)
  unread = Sub(end, base)
  single = Equal(unread, one)
  begun = Greater(base, zero)
  may = And(single, begun)

  padded = Concat<axis=0>(nothing, tokens)
  from1 = Add(length, one)
  from2 = Add(length, two)
  from3 = Add(length, three)
  ends1 = Slice(padded, two, from2)
  ends2 = Slice(padded, one, from1)
  ends3 = Slice(padded, zero, length)
  last1 = Slice(padded, from2, from3)
  last2 = Slice(padded, from1, from2)
  last3 = Slice(padded, length, from1)
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
  solid = GreaterOrEqual(long, two)
  trusted = Where(solid, wish, one)
  willing = Min(trusted, wish)
  budget = Sub(limit, length)
  behind = Sub(budget, one)
  allowed = Min(willing, behind)
  draft_now = Cast<to=7>(may)
  drafted = Mul(allowed, draft_now)
  filler = Cast<to=7>(single)
  some = Max(drafted, filler)
  rows = Add(unread, some)
  odd = Mod(rows, two)
  guesses = Add(some, odd)

  count = Squeeze(guesses, zero)
  places = Range(number, count, step)
  turn = Mod(places, period)
  at = Add(best, turn)
  guess = Gather<axis=0>(tokens, at)

  own = Slice(tokens, base, end)
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
with that period; without a match the last token, again. A match of one token is good for one guess only.
Drafting starts when the prompt is read. Every run reads an even number of rows, and its head as many: a row
left alone rounds differently in several kernels (docs/decisions/0016-exact-speculation.md). So a guess may be
fed without being drafted. ``-1`` stands before the text, so that no axis is ever empty.
"""

ACCEPT = """
accept (int64[L] tokens, int64[1] wish, int64[3] counts, int64[r] choices, int64[f] guess, int64[1] drafted,
        bool[1] reading, int64[1] end, int64[E] eos_token_id, int64[1] limit, int64[1] most)
    => (int64[M] longer, int64[1] base, int64[1] next_wish, int64[3] next_counts, bool going)
{
  zero = Constant<value_ints=[0]>()
  one = Constant<value_ints=[1]>()
  two = Constant<value_ints=[2]>()
  axis = Constant<value_int=0>()
  length = Shape(tokens)

  chosen = Slice(choices, zero, drafted)
  proposed = Slice(guess, zero, drafted)
  same = Equal(chosen, proposed)
  other = Not(same)
  wrong = Cast<to=7>(other)
  misses = CumSum(wrong, axis)
  clean = Equal(misses, zero)
  hit = Cast<to=7>(clean)
  accepted = ReduceSum<keepdims=1>(hit, zero)
  longest = Add(accepted, one)
  new = Slice(choices, zero, longest)

  new_column = Unsqueeze(new, one)
  meets = Equal(new_column, eos_token_id)
  meeting = Cast<to=7>(meets)
  ends = ReduceSum<keepdims=0>(meeting, one)
  ended_before = CumSum<exclusive=1>(ends, axis)
  open = Equal(ended_before, zero)
  answering = Not(reading)
  kept = And(open, answering)
  added = Compress<axis=0>(new, kept)
  longer = Concat<axis=0>(tokens, added)
  base = Add(end, accepted)

  size = Shape(longer)
  within = Less(size, limit)
  kept_ends = Compress<axis=0>(ends, kept)
  ending = ReduceSum<keepdims=1>(kept_ends, zero)
  unended = Equal(ending, zero)
  on = And(within, unended)
  going = Squeeze(on, zero)

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
}
"""
"""What the model's own choices make of the guesses.

Those that equal its choices stand, up to the first that does not; its choice there comes behind them. An
end-of-sequence token ends the answer, wherever it stands. ``base`` tells how many lines of the cache hold
true tokens: moving it is all that a rejected guess costs, since the next run writes over what it left.
"""

END = """
end (int64[N] tokens, int64[3] counts)
    => (int64[1,N] sequences, int64 num_steps, int64 num_drafted_tokens, int64 num_accepted_tokens)
{
  zero = Constant<value_ints=[0]>()
  steps = Constant<value_int=0>()
  drafts = Constant<value_int=1>()
  hits = Constant<value_int=2>()
  sequences = Unsqueeze(tokens, zero)
  num_steps = Gather<axis=0>(counts, steps)
  num_drafted_tokens = Gather<axis=0>(counts, drafts)
  num_accepted_tokens = Gather<axis=0>(counts, hits)
}
"""

OUTPUTS = ("sequences", "num_steps", "num_drafted_tokens", "num_accepted_tokens")
