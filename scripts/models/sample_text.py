"""English text on unlike subjects, to obtain hidden states that look like those of real use.

Routers are fitted on `FITTING_TEXT`; how evenly they spread tokens over experts is measured on `CHECKING_TEXT`, which they have not seen.
"""

FITTING_TEXT = """\
The harbour freezes in the middle of December, and from then until spring the island lives on what it has put away. Every cellar holds
potatoes in sand, barrels of herring and a shelf of jars with last summer's plums. When the ice is thick enough the postman comes across it
on a sledge, twice a week, with letters, newspapers and sometimes a parcel that has been underway for a month.

To make the dough, mix 500 grams of flour with 10 grams of salt and 320 millilitres of lukewarm water. Knead it for ten minutes, cover the
bowl with a cloth and wait until it has doubled in size. Bake at 230 degrees for about forty minutes; the loaf is done if it sounds hollow
when you knock on its bottom.

"Have you seen the keys?" she asked. "They were on the table an hour ago."
"Then look under the newspaper," said her brother without raising his eyes. "Everything in this house ends up under the newspaper."

A hash table stores pairs of keys and values. The position of a pair is computed from its key, so that a lookup takes the same time however
many pairs there are. Two keys may share a position; the usual remedies are a list for every position, or to try the next free one.

def average(numbers):
    if not numbers:
        return 0.0
    total = 0
    for number in numbers:
        total += number
    return total / len(numbers)

In 1867 the parliament passed a law that allowed every adult man who paid rent to vote. The number of voters nearly doubled, from 1.3 to 2.5
million people. Women had to wait for another fifty years, and a series of marches, strikes and arrests, before the same right was theirs.

Water expands when it freezes, which is why pipes burst in winter and why ice floats. If it sank, lakes would freeze from the bottom up and
few fish would live through a cold January. The capital of Norway is Oslo; the capital of Chile is Santiago; the largest planet is Jupiter.
"""

CHECKING_TEXT = """\
Nobody had expected the small team to win. They had one coach, two balls and a field that flooded after each heavy rain, but by the end of
the season they were first in the league and the whole town came to watch them train. The mayor promised a new stand; it was never built.

Question: how many legs do three spiders have? Answer: a spider has eight legs, so three spiders have 24 legs together.

Light from the sun takes a little more than eight minutes to reach us. That from the nearest other star takes over four years, and what we
see of a distant galaxy is how it looked long before there were people. A telescope is therefore also a way to look into the past.

Dear Mrs. Hartley, thank you for your letter of the third of May. I am sorry to hear that the lamp arrived broken. We will send you a new one
this week, free of charge, and you need not return the old one. If there is anything else that we can do, please call our office any morning.

for (int i = 0; i < count; i++) {
    printf("%d: %s\\n", i, names[i]);
}
"""
