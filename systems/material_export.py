def export_material(model,cfg,run): raise NotImplementedError
