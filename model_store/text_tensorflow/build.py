"""Builds a language guesser that takes strings and has three signatures, as a SavedModel of pure TensorFlow ops."""

import argparse
import os
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np
import tensorflow as tf

BUCKETS = 2048  # every run of one to three characters falls into one
UNDETERMINED = "und"  # what ISO 639 calls a language unknown: here that of a text without Latin letters

SENTENCES = {
    "de": """Alle Menschen sind frei und gleich an Würde und Rechten geboren. Ich möchte gern eine Tasse Kaffee mit
        Milch. Der Zug nach Berlin fährt um acht Uhr ab. Wir haben gestern im Garten gearbeitet, weil das Wetter schön
        war. Kannst du mir bitte sagen, wo der Bahnhof ist? Das Kind spielt mit dem Hund auf der Straße. Sie wohnt seit
        drei Jahren in einer kleinen Wohnung. Heute ist nicht mein Tag. Guten Morgen, wie geht es Ihnen?""",
    "en": """All human beings are born free and equal in dignity and rights. I would like a cup of coffee with milk,
        please. The train to London leaves at eight o'clock. We worked in the garden yesterday because the weather was
        nice. Can you tell me where the station is? The child is playing with the dog in the street. She has been living
        in a small flat for three years. This is not what they thought it should be. Good morning, how are you?""",
    "es": """Todos los seres humanos nacen libres e iguales en dignidad y derechos. Me gustaría una taza de café con
        leche, por favor. El tren para Madrid sale a las ocho. Ayer trabajamos en el jardín porque hacía buen tiempo.
        ¿Puedes decirme dónde está la estación? El niño juega con el perro en la calle. Ella vive desde hace tres años
        en un piso pequeño. Hoy no es mi día, pero mañana será mejor. Buenos días, ¿cómo está usted?""",
    "fr": """Tous les êtres humains naissent libres et égaux en dignité et en droits. Je voudrais une tasse de café au
        lait, s'il vous plaît. Le train pour Paris part à huit heures. Nous avons travaillé hier dans le jardin parce
        qu'il faisait beau. Peux-tu me dire où est la gare ? L'enfant joue avec le chien dans la rue. Elle habite depuis
        trois ans dans un petit appartement. Ce n'est pas mon jour. Bonjour, comment allez-vous aujourd'hui ?""",
    "it": """Tutti gli esseri umani nascono liberi ed eguali in dignità e diritti. Vorrei una tazza di caffè con il
        latte, per favore. Il treno per Roma parte alle otto. Ieri abbiamo lavorato in giardino perché il tempo era
        bello. Puoi dirmi dove si trova la stazione? Il bambino gioca con il cane nella strada. Lei abita da tre anni in
        un piccolo appartamento. Oggi non è la mia giornata, ma che cosa ci posso fare? Buongiorno, come sta?""",
    "nl": """Alle mensen worden vrij en gelijk in waardigheid en rechten geboren. Ik wil graag een kopje koffie met
        melk. De trein naar Amsterdam vertrekt om acht uur. Wij hebben gisteren in de tuin gewerkt, omdat het mooi weer
        was. Kun je mij zeggen waar het station is? Het kind speelt met de hond op straat. Zij woont al drie jaar in een
        kleine woning. Dat is niet wat ik zou willen, maar het moet. Goedemorgen, hoe gaat het met u?""",
}
LANGUAGES = sorted(SENTENCES)

TEXT = tf.TensorSpec([None], tf.string, name="text")


def normalized(text: tf.Tensor, letters: str = r"\pL\pM") -> tf.Tensor:
    """Lower case, words of letters and their marks only, one space between them; what is not UTF-8 is no letter."""
    readable = tf.strings.unicode_transcode(text, "UTF-8", "UTF-8", errors="replace")
    words = tf.strings.regex_replace(tf.strings.lower(readable, encoding="utf-8"), rf"[^{letters}]+", " ")
    return tf.strings.strip(words)


def buckets(text: tf.Tensor) -> tf.RaggedTensor:
    """The buckets of a text's runs of Latin letters and the spaces around them; none where it has no such letter."""
    words = normalized(text, letters=r"\p{Latin}")
    padded = tf.where(words == "", "", tf.strings.join([" ", words, " "]))
    runs = tf.strings.ngrams(tf.strings.unicode_split(padded, "UTF-8"), ngram_width=(1, 2, 3), separator="")
    return tf.strings.to_hash_bucket_fast(runs, BUCKETS)


def log_likelihoods() -> np.ndarray:
    """Naive Bayes: the logarithm of each bucket's share in each language, FP32 [BUCKETS, languages]."""
    texts = tf.constant([SENTENCES[language] for language in LANGUAGES])
    counts = [np.bincount(row, minlength=BUCKETS) + 0.5 for row in buckets(texts).to_list()]
    return np.log([row / row.sum() for row in counts]).T.astype(np.float32)


class LanguageGuesser(tf.Module):
    """Three signatures over the same input, `text` BYTES [-1]; every row is answered by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.table = tf.Variable(log_likelihoods(), trainable=False)
        self.codes = tf.constant([*LANGUAGES, UNDETERMINED])

    @tf.function(input_signature=[TEXT])
    def guess(self, text: tf.Tensor) -> dict[str, tf.Tensor]:
        """The likeliest language and the probability of each, in the order of LANGUAGES."""
        runs = buckets(text)
        evidence = tf.gather(self.table, runs.values)
        scores = tf.nn.softmax(tf.math.unsorted_segment_sum(evidence, runs.value_rowids(), runs.nrows()))
        best = tf.where(runs.row_lengths() == 0, len(LANGUAGES), tf.argmax(scores, axis=1, output_type=tf.int32))
        return {"language": tf.gather(self.codes, best), "scores": scores}

    @tf.function(input_signature=[TEXT])
    def normalize(self, text: tf.Tensor) -> dict[str, tf.Tensor]:
        """The text in lower case, without all that is no letter."""
        return {"normalized": normalized(text)}

    @tf.function(input_signature=[TEXT])
    def count(self, text: tf.Tensor) -> dict[str, tf.Tensor]:
        """The number of words."""
        return {"words": tf.cast(tf.strings.split(normalized(text)).row_lengths(), tf.int32)}


def main() -> None:
    """Count, try, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "1", help="the version directory to write")
    out: Path = parser.parse_args().out
    model = LanguageGuesser()
    signatures = {"serving_default": model.guess, "normalize": model.normalize, "count": model.count}
    tf.saved_model.save(model, str(out), signatures=signatures)
    language = model.guess(tf.constant(["Where is the library?"]))["language"].numpy()[0].decode()
    print(f"{out}: 'Where is the library?' is {language}")


if __name__ == "__main__":
    main()
