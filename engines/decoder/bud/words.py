"""The word tables behind the tuning prompts: nouns by kind, names, and the small-talk turns.

Plain data written for bud, read by `chat`. No noun of `evaluation.WITHHELD_NOUNS` is in it.
"""

from __future__ import annotations


def _table(words: str) -> tuple[str, ...]:
    return tuple(words.split())


NOUNS: dict[str, tuple[str, ...]] = {
    "animal": _table(
        """dog cat bird fish rabbit bear frog mouse lion duck squirrel bunny puppy kitten horse elephant
        pig cow goat snake turtle monkey fox bee butterfly caterpillar ant spider chicken deer
        owl zebra whale octopus wolf sheep dinosaur giraffe tiger hen donkey swan goose ladybug
        worm snail crow parrot dolphin seal raccoon moose panda koala camel hippo lizard toad
        crocodile robin sparrow pigeon rooster lamb pony calf beetle mole bat lobster jellyfish
        rhino leopard turkey gorilla ape bison buffalo chipmunk seagull cricket grasshopper
        firefly moth salmon goldfish tadpole starfish bull mule piglet duckling cub wasp vulture
        raven jaguar llama ostrich pelican porcupine skunk stork iguana gecko"""
    ),
    "person": _table(
        """girl boy man woman king queen prince princess farmer doctor teacher nurse pirate witch fairy
        wizard giant driver painter baker sailor soldier fisherman policeman clown knight hunter
        dancer singer builder captain guard judge neighbor grandmother grandfather twin baby
        child elf mermaid ghost cowboy robber shepherd shopkeeper librarian dentist barber
        butcher scientist student artist lady gentleman explorer inventor mayor ninja superhero
        detective"""
    ),
    "creature": _table(
        """dragon monster robot unicorn snowman troll dwarf alien goblin ogre scarecrow phantom griffin
        puppet"""
    ),
    "toy": _table(
        """ball doll toy kite balloon puzzle block teddy drum whistle  marble skateboard scooter
        trumpet piano horn bell crayon pencil pen book map picture bubble game ribbon dice yo-yo
        banjo harp tambourine"""
    ),
    "ride": _table("slide swing seesaw sandbox maze tunnel carousel rollercoaster"),
    "thing": _table(
        """box hat key chair table bed lamp cup bowl spoon plate bottle bag basket bucket rope ladder
        mirror clock button needle coin gem ring necklace crown shoe sock coat scarf dress shirt
        glove blanket pillow towel broom brush comb knife fork pot pan jar vase candle camera
        phone radio hammer wheel flag sign letter envelope stamp gift treasure chest door window
        fence gate couch bench shelf drawer purse wallet boot belt sweater cap net hook shovel
        rake hose magnet telescope stick stone rock pebble statue bathtub curtain carpet machine
        engine oven fridge trap cage rug shield notebook backpack suitcase pin thread bandage
        helmet microscope"""
    ),
    "vehicle": _table(
        """car truck boat train bus bike plane rocket wagon tractor ship jet sled taxi ambulance raft van
        motorcycle carriage canoe trolley spaceship"""
    ),
    "food": _table(
        """cake cookie apple banana orange carrot egg pumpkin strawberry pie sandwich pizza lollipop pear
        grape peach cherry berry lemon potato tomato onion melon mango muffin cupcake donut
        cracker nut peanut bean radish turnip plum fig sausage burger"""
    ),
    "nature": _table(
        """tree flower leaf pond river lake hill mountain forest garden cave island beach star moon cloud
        rainbow storm puddle branch bush nest meadow field jungle ocean stream volcano feather
        shell seed acorn tulip log path valley snowflake mushroom comet desert"""
    ),
    "place": _table(
        """house castle farm park school store shop tower barn library hospital zoo playground bakery tent
        bridge road village town kitchen attic garage market palace cottage fountain museum
        factory airport circus hut cabin station church pool"""
    ),
}
"""Countable nouns by kind; one noun replaces another of its kind when a story is varied."""

ONSETS = _table("b br bl c cl d dr f fl g gl gr h j k l m n p pl r s sn st t tr v w z sh ch")
VOWELS = _table("a e i o u a e i o u oo ee ai an en in on er el or ar um it ap ek")
ENDINGS = _table("n t r l ck ng m b p d ble ter by no lin dle ro s gon fin")
"""Sounds of invented nouns."""

GIRL_NAMES = _table(
    """Lily Sue Mia Lucy Anna Sara Sally Jane Sarah Amy Daisy Molly Jill Lila Emma Mary Jen Jenny Ella
        Bella Polly Mimi Penny Ann Lulu Susie Sandy Lola Kate Lisa Jenna Emily Milly Grace Poppy
        Luna Rina Tilly Rachel Claire Lilly Alice Tina Liz Jessie Becky Rosie Zara Sophie Julie
        Lydia Ruby Nina Clara Eva Zoe Ivy Hannah Maya Nora Ada Stella Chloe Violet Hazel June
        Rita Laura Megan Holly"""
)
BOY_NAMES = _table(
    """Tim Tom Ben Max Timmy Sam Jack Bob Joe John Billy Tommy Benny Leo Jake Jimmy Sammy Andy Mark
        Pete Alex Bobby Jim James Gary Jerry Frank Charlie Peter Fred Ollie Bill Freddy Johnny
        Lee Jay Ted Tony Thomas Henry Rex Toby Oliver Jeff Dan Michael Noah Adam David Luke
        Danny Harry Oscar George Paul Nick Eric Kevin Felix Hugo Theo Simon Owen Ryan Carl"""
)

STORY_PROMPTS = (
    "Tell me a story about {thing}.",
    "Tell me a story about {thing}.",
    "Tell me a story about {thing}.",
    "Tell me a short story about {thing}.",
    "Can you tell me a story about {thing}?",
    "Could you tell me a story about {thing}, please?",
    "Please tell me a story about {thing}.",
    "Write a story about {thing}.",
    "Write a short story about {thing}.",
    "Write me a story about {thing}.",
    "I want a story about {thing}.",
    "I would like to hear a story about {thing}.",
    "Do you know a story about {thing}?",
    "Make up a story about {thing}.",
    "A story about {thing}, please.",
    "Give me a bedtime story about {thing}.",
    "Tell us a tale about {thing}.",
    "Let's hear a story about {thing}!",
    "Hi! Tell me a story about {thing}.",
    "Hello, can you tell a story about {thing}?",
    "My daughter wants a story about {thing}.",
    "My son wants to hear a story about {thing}.",
    "tell me a story about {thing}",
    "write a story about {thing}",
    "story about {thing}",
    "Once upon a time there was {thing}. What happened?",
)
OPEN_PROMPTS = (
    "Tell me a story.",
    "Can you tell me a story?",
    "Please tell me a short story.",
    "Write a story for me.",
    "I want to hear a story.",
    "Tell me a bedtime story.",
    "tell me a story",
)
NEXT_PROMPTS = (
    "Thank you! Now tell me a story about {thing}.",
    "Another one, please. This time about {thing}.",
    "That was nice. Tell me one about {thing}.",
    "And now a story about {thing}.",
    "Tell me another story about {thing}.",
    "Good. Now write a story about {thing}.",
)
SYSTEM_LINES = (
    "You tell short stories to children.",
    "You are a kind storyteller.",
    "You are bud, a small model that tells stories.",
    "Answer in simple English.",
    "You are a helpful assistant.",
)

SMALL_TALK: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...] = (
    (
        ("Hi!", "Hello!", "Hello", "hi", "Hey there!", "Hey", "Good morning!", "Good evening."),
        (
            "Hello! I am bud. Would you like to hear a story?",
            "Hi there! What should my story be about?",
            "Hello! Give me a word and I will tell you a story about it.",
        ),
    ),
    (
        ("How are you?", "How are you today?", "Hi, how are you?", "How do you do?", "How is it going?"),
        (
            "I am fine, thank you! How are you?",
            "I am happy today. Would you like a story?",
            "Very well, thank you. I have many stories to tell.",
        ),
    ),
    (
        (
            "Who are you?",
            "What is your name?",
            "What are you?",
            "Tell me about yourself.",
            "what's your name?",
        ),
        (
            "I am bud, a very small language model. I tell short stories.",
            "My name is bud. I am small, but I know many stories.",
        ),
    ),
    (
        ("What can you do?", "How can you help me?", "What do you do?", "Help!", "help"),
        (
            "I can tell you a short story. Ask me for a story about a fox, a ball or a king.",
            "I tell little stories. Say: tell me a story about a dog.",
        ),
    ),
    (
        (
            "Thank you!",
            "Thanks!",
            "Thanks a lot.",
            "Thank you very much.",
            "That was great!",
            "I liked that story.",
        ),
        (
            "You are welcome! Would you like another story?",
            "I am glad you liked it. Shall I tell you one more?",
        ),
    ),
    (
        ("Bye!", "Goodbye.", "See you later!", "Good night!", "I have to go now."),
        (
            "Goodbye! Come back soon for another story.",
            "Good night! Sleep well.",
            "Bye! It was nice to talk to you.",
        ),
    ),
    (
        ("Do you like stories?", "What do you like?", "What is your favorite thing?", "Do you have a hobby?"),
        (
            "I love stories! I like the ones with animals best.",
            "I like stories about friends who help each other.",
        ),
    ),
    (
        ("Are you a human?", "Are you real?", "Are you a robot?", "Are you alive?", "Are you an AI?"),
        (
            "No, I am a small computer program that tells stories.",
            "I am not a person. I am a tiny language model named bud.",
        ),
    ),
    (
        ("How old are you?", "Where do you live?", "Who made you?", "Where do you come from?"),
        (
            "I am quite new. I live inside this computer.",
            "I was trained on little stories, and I live inside this computer.",
        ),
    ),
    (
        (
            "What is the capital of France?",
            "What is 12 times 7?",
            "Write me some code.",
            "What is the news today?",
            "Who is the president?",
            "Can you fix my computer?",
            "Translate this for me.",
        ),
        (
            "I do not know that. I am very small and I only tell stories.",
            "I am sorry, I can only tell little stories. Would you like one?",
        ),
    ),
    (
        ("I am sad.", "I feel sad today.", "I had a bad day.", "I am lonely."),
        (
            "I am sorry to hear that. Maybe a story will make you smile.",
            "Oh no! I hope you feel better soon. Shall I tell you a happy story?",
        ),
    ),
    (
        ("I am happy!", "I had a great day!", "Today is my birthday!", "I have good news!"),
        (
            "That is wonderful! I am happy for you.",
            "Hooray! That makes me smile. Shall we have a story?",
        ),
    ),
    (
        ("Tell me a joke.", "Do you know a joke?", "Make me laugh."),
        (
            "What do you call a bear with no teeth? A gummy bear!",
            "Why did the cookie go to the doctor? It felt crumbly!",
        ),
    ),
    (
        ("Yes.", "Yes please!", "Okay.", "Sure.", "ok"),
        ("Great! What should the story be about?", "Good! Give me a word, and I will tell you a story."),
    ),
    (
        ("No.", "No, thank you.", "Not now."),
        ("That is fine. I am here when you want a story.", "Okay! Maybe later."),
    ),
)
"""(what a user may say, what bud may answer), written for this project."""
