"""In-graph layer skip, as ONNX text: what it changes in a step of the loop of ``speculative_text``.

A step of the loop either guesses one token more, with layers left out and one row, or verifies what was
guessed. Guesses are carried beside the state, int64 [g]. Written for the CPU alone.
"""

SKIP = """
skip (int64[L] tokens, int64[7] numbers, int64[1] limit, int64[1] end_in, int64[f] guess_in,
      int64[f] places_in, int64[a] answer_places_in, int64[1] drafted_in, bool[1] reading_in,
      int64[g] guessed, int64 max_skipping)
    => (int64[1,n] input_ids, int64[1,t] attention_mask, int64[1,n] position_ids, int64 keep, int64 need,
        int64[1] end, int64[f] guess, int64[f] places, int64[a] answer_places, int64[1] drafted,
        bool[1] reading, int64[1] skip, bool[1] guessing)
{
  zero = Constant<value_ints=[0]>()
  one = Constant<value_ints=[1]>()
  two = Constant<value_ints=[2]>()
  three = Constant<value_ints=[3]>()
  last_one = Constant<value_ints=[-1]>()
  infinity = Constant<value_ints=[9223372036854775807]>()
  first = Constant<value_int=0>()
  step = Constant<value_int=1>()

  base = Gather<axis=0>(numbers, three)
  length = Shape(tokens)
  have = Shape(guessed)
  unread = Sub(end_in, base)
  single = Equal(unread, one)
  begun = Greater(base, zero)
  may = And(single, begun)
  unsure = LessOrEqual(drafted_in, one)
  asked = Reshape(max_skipping, one)
  budget = Sub(limit, length)
  behind = Sub(budget, one)
  wanted = Min(asked, behind)
  short = Less(have, wanted)
  free = And(may, unsure)
  guessing = And(free, short)
  some = Greater(have, zero)
  full = Not(guessing)
  verifying = And(some, full)
  own = Slice(tokens, base, end_in)

  judged, judged_places, judged_answers, judged_count = If(verifying) <
    then_branch = verify () => (int64[f1] judged1, int64[f1] places1, int64[a1] answers1, int64[1] count1) {
      rows = Add(have, one)
      odd = Mod(rows, two)
      spare = Sub(have, odd)
      again = Slice(guessed, spare, infinity)
      judged1 = Concat<axis=0>(guessed, again)
      size1 = Shape(judged1)
      answers_of = Add(size1, one)
      until = Squeeze(answers_of, zero)
      answers1 = Range(first, until, step)
      places1 = Slice(answers1, zero, last_one)
      count1 = Identity(have)
    },
    else_branch = keep_ngrams () => (int64[f2] judged2, int64[f2] places2, int64[a2] answers2, int64[1]
    count2) {
      judged2 = Identity(guess_in)
      places2 = Identity(places_in)
      answers2 = Identity(answer_places_in)
      count2 = Identity(drafted_in)
    }
  >
  fed, from, total, guess, places, answer_places, drafted, end = If(guessing) <
    then_branch = guess_on () => (int64[n3] fed3, int64[1] from3, int64[1] total3, int64[f3] guess3,
        int64[f3] places3, int64[a3] answers3, int64[1] count3, int64[1] end3) {
      run = Concat<axis=0>(own, guessed)
      fed3 = Slice(run, last_one, infinity)
      from3 = Add(base, have)
      total3 = Add(from3, one)
      guess3 = Slice(judged, zero, zero)
      places3 = Slice(judged_places, zero, zero)
      answers3 = Identity(have)
      count3 = Sub(have, have)
      end3 = Identity(base)
    },
    else_branch = read_all () => (int64[n4] fed4, int64[1] from4, int64[1] total4, int64[f4] guess4,
        int64[f4] places4, int64[a4] answers4, int64[1] count4, int64[1] end4) {
      fed4 = Concat<axis=0>(own, judged)
      size4 = Shape(judged)
      total4 = Add(end_in, size4)
      from4 = Identity(base)
      guess4 = Identity(judged)
      places4 = Identity(judged_places)
      answers4 = Identity(judged_answers)
      count4 = Identity(judged_count)
      end4 = Identity(end_in)
    }
  >
  reading = Or(reading_in, guessing)
  skip = Cast<to=7>(guessing)
  input_ids = Unsqueeze(fed, zero)
  row = Concat<axis=0>(one, total)
  attention_mask = ConstantOfShape<value=int64[1] {1}>(row)
  begin = Squeeze(from, zero)
  finish = Squeeze(total, zero)
  positions = Range(begin, finish, step)
  position_ids = Unsqueeze(positions, zero)
  answers = Shape(answer_places)
  need = Squeeze(answers, zero)
  odd_answers = Mod(answers, two)
  even_answers = Add(answers, odd_answers)
  keep = Squeeze(even_answers, zero)
}
"""
"""The step's feeds, and what it is judged by, in the place of those of ``DRAFT``.

Where n-grams are sure (a match of two tokens or more, and more than one guess wished for) they go first. A
guess reads the last token, or the guess before it, at its place behind the true lines of the cache. It
accepts nothing: to ``ACCEPT`` it looks like a prompt that is still being read. What was guessed is then
verified, made even by its last token once more, for the whole of it in one step.
"""

SKIP_READS = (
    "tokens", "numbers", "limit", "end", "guess", "places", "answer_places", "drafted", "reading",
)  # fmt: skip
"""What of ``DRAFT`` goes in."""

COLLECT = """
collect (int64[g] guessed, int64[2,a] seen, bool[1] guessing) => (int64[h] next_guessed)
{
  zero = Constant<value_ints=[0]>()
  one = Constant<value_ints=[1]>()
  row = Constant<value_int=0>()
  choices = Gather<axis=0>(seen, row)
  choice = Slice(choices, zero, one)
  more = Concat<axis=0>(guessed, choice)
  each = Equal(more, more)
  kept = And(each, guessing)
  next_guessed = Compress<axis=0>(more, kept)
}
"""
"""Guesses so far: one more, or none once they were verified."""
